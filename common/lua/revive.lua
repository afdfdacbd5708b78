-- revive: queue a failed or cancelled job again, as a new run of the same id.
-- KEYS  1 job hash  2 event stream  3 lane  4 dead letter stream  [5 batch hash]
-- ARGV  1 id  2 source  3 batch id, '' for none
-- Returns 1 queued | 0 not failed or cancelled, nothing written | -1 its hash is gone, nothing written
-- The run number rises, so the outcome of the run before can neither end nor overwrite this one.
-- Cost O(1). Server 7.0 or later.
local function revive(keys, argv)
  local job, events, lane, dead, batch = keys[1], keys[2], keys[3], keys[4], keys[5]
  local id, source, batch_id = argv[1], argv[2], argv[3]
  local state, dead_id = unpack(redis.call('HMGET', job, 'state', 'dead_id'))
  if not state then return -1 end
  if state ~= 'failed' and state ~= 'cancelled' then return 0 end

  local now = now_ms()
  move(job, events, batch, id, 'queued', 'queued_ms', now, 'attempts', 0, enqueue(lane, id, source, batch_id))
  if dead_id then redis.call('XDEL', dead, dead_id) end
  redis.call('HDEL', job, 'dead_id', 'error', 'worker', 'progress', 'audio_s', 'started_ms', 'finished_ms')
  redis.call('PERSIST', job)
  redis.call('HSET', job, 'run', run_of(job) + 1)
  return 1
end

register('revive', revive)
