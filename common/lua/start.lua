-- start: begin one attempt of a job whose entry this consumer holds.
-- KEYS  1 lane  2 job hash  3 event stream  4 results stream  [5 batch hash]
-- ARGV  1 group  2 consumer  3 entry id  4 delivery count  5 id  6 spec JSON to use when the job has no hash
-- Returns {1, server ms, hash field, value, …} started | {0} lease lost | {-1} retired already
--         {2} a stray: another entry carries this job, or it has ended; retired | {3} cancelled meanwhile; retired
-- An entry that a client added with XADD has no hash yet: the job is made here, so plain Redis clients can submit.
-- Cost O(log P), P = pending entries of the group. Server 7.0 or later.
local function start(keys, argv)
  local lane, job, events, results, batch = keys[1], keys[2], keys[3], keys[4], keys[5]
  local group, consumer, entry_id, deliveries, id, spec = argv[1], argv[2], argv[3], argv[4], argv[5], argv[6]
  local held = fence(lane, group, consumer, entry_id, deliveries)
  if held ~= OURS then return { held } end

  local now = now_ms()
  if redis.call('EXISTS', job) == 0 then
    redis.call('HSET', job, 'spec', spec, 'run', 1, 'created_ms', now, 'entry_id', entry_id)
    move(job, events, batch, id, 'queued', 'queued_ms', now)
  end
  local state, entry, cancel = unpack(redis.call('HMGET', job, 'state', 'entry_id', 'cancel_requested'))
  if entry ~= entry_id or (state ~= 'queued' and state ~= 'running') then
    retire(lane, group, entry_id)
    return { 2 }
  end
  if cancel then
    end_cancelled(results, job, events, batch, id)
    retire(lane, group, entry_id)
    return { 3 }
  end
  redis.call('HINCRBY', job, 'attempts', 1)
  move(job, events, batch, id, 'running', 'started_ms', now, 'worker', consumer, 'progress', 0)
  return { 1, now, unpack(redis.call('HGETALL', job)) }
end

register('start', start, { 'allow-oom' })
