-- bury: end a job as failed: a dead letter for the operator, an outcome for the writer.
-- KEYS  1 lane  2 job hash  3 event stream  4 results stream  5 parts hash  6 dead letter stream
--       [7 batch hash]
-- ARGV  1 group  2 consumer  3 entry id  4 delivery count  5 id  6 error JSON  7 reason
-- Returns 1 buried | 0 lease lost, nothing written | -1 retired already, nothing written
--         2 retired as cancelled: the cancellation came first; reviving all dead letters must not bring the job back
-- Runs at maxmemory too. Cost O(log P), P = pending entries of the group. Server 7.0 or later.
local function bury(keys, argv)
  local lane, job, events, results, parts = keys[1], keys[2], keys[3], keys[4], keys[5]
  local dead, batch = keys[6], keys[7]
  local group, entry_id, id = argv[1], argv[3], argv[5]
  local failure, reason = argv[6], argv[7]
  local held = may_settle(keys, argv, batch)
  if held ~= OURS then return held end

  publish(results, id, run_of(job), 'failed', failure)
  local dead_id = redis.call('XADD', dead, '*', 'id', id, 'reason', reason, 'error', failure)
  retire(lane, group, entry_id)
  redis.call('DEL', parts)
  move(job, events, batch, id, 'failed', 'finished_ms', now_ms(), 'error', failure, 'dead_id', dead_id)
  return 1
end

register('bury', bury, { 'allow-oom' })
