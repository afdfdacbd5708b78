-- store: retire a result whose record and files are stored; the job is now what its outcome says.
-- KEYS  1 results stream  2 job hash  3 event stream  [4 batch hash]
-- ARGV  1 group  2 consumer  3 entry id  4 delivery count  5 id  6 run  7 outcome  8 time to live of the hash in s
-- Returns 1 retired | 0 lease lost, nothing written | -1 retired already, nothing written
-- A job that was revived meanwhile is in a later run: its hash is left alone. A dead letter keeps its job's hash.
-- Runs at maxmemory too. Cost O(log P), P = pending entries of the group. Server 7.0 or later.
local function store(keys, argv)
  local results, job, events, batch = keys[1], keys[2], keys[3], keys[4]
  local group, consumer, entry_id, deliveries, id = argv[1], argv[2], argv[3], argv[4], argv[5]
  local run, outcome, ttl_s = argv[6], argv[7], argv[8]
  local held = fence(results, group, consumer, entry_id, deliveries)
  if held ~= OURS then return held end

  retire(results, group, entry_id)
  local state, dead_id = unpack(redis.call('HMGET', job, 'state', 'dead_id'))
  if not state or run_of(job) ~= run then return 1 end
  if outcome == 'completed' then
    -- It may have been a dead letter, revived once it could be stored.
    redis.call('HDEL', job, 'error', 'dead_id')
    dead_id = false
    move(job, events, batch, id, 'completed')
  end
  if not dead_id then redis.call('EXPIRE', job, ttl_s) end
  return 1
end

register('store', store, { 'allow-oom' })
