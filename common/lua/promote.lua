-- promote: queue one delayed job that is due.
-- KEYS  1 delayed set  2 lane  3 job hash  4 event stream  [5 batch hash]
-- ARGV  1 id  2 source  3 batch id, '' for none
-- Returns 1 queued | 0 not delayed any more, or not due yet: nothing written | -1 its hash is gone: forgotten
-- Two promoters may race: only one of them finds the id in the set.
-- Cost O(log D), D = size of the delayed set. Server 7.0 or later.
local function promote(keys, argv)
  local delayed, lane, job, events, batch = keys[1], keys[2], keys[3], keys[4], keys[5]
  local id, source, batch_id = argv[1], argv[2], argv[3]
  local due_ms = redis.call('ZSCORE', delayed, id)
  if not due_ms or tonumber(due_ms) > now_ms() then return 0 end

  if redis.call('EXISTS', job) == 0 then
    redis.call('ZREM', delayed, id)
    return -1
  end
  move(job, events, batch, id, 'queued', 'queued_ms', now_ms(), enqueue(lane, id, source, batch_id))
  redis.call('ZREM', delayed, id)
  return 1
end

register('promote', promote, { 'allow-oom' })
