-- delay: retire the entry of an attempt that failed and bring its job back later.
-- KEYS  1 lane  2 job hash  3 event stream  4 results stream  5 parts hash  6 delayed set
--       [7 batch hash]
-- ARGV  1 group  2 consumer  3 entry id  4 delivery count  5 id  6 error JSON  7 delay in ms
-- Returns 1 scheduled | 0 lease lost, nothing written | -1 retired already, nothing written | 2 retired as cancelled
-- The parts that are done stay: the next attempt goes on from there.
-- Runs at maxmemory too. Cost O(log P + log D), D = size of the delayed set. Server 7.0 or later.
local function delay(keys, argv)
  local lane, job, events, delayed, batch = keys[1], keys[2], keys[3], keys[6], keys[7]
  local group, entry_id, id = argv[1], argv[3], argv[5]
  local failure, delay_ms = argv[6], tonumber(argv[7])
  local held = may_settle(keys, argv, batch)
  if held ~= OURS then return held end

  redis.call('ZADD', delayed, now_ms() + delay_ms, id)
  retire(lane, group, entry_id)
  redis.call('HDEL', job, 'entry_id')
  move(job, events, batch, id, 'scheduled', 'error', failure)
  return 1
end

register('delay', delay, { 'allow-oom' })
