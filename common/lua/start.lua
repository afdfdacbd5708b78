-- start: begin one attempt of a job whose entry this consumer holds.
-- KEYS  1 lane  2 job hash  3 event stream  4 results stream  5 parts hash  [6 batch hash]
-- ARGV  1 group  2 consumer  3 entry id  4 delivery count  5 id  6 spec JSON to use when the job has no hash
-- Returns {1, {hash field, value, …}, {part, body, …}} started | {0} lease lost | {-1} retired already
--         {2} a stray: another entry carries this job, or it has ended; retired | {3} cancelled meanwhile; retired
-- May be repeated when its reply was lost: one delivery counts as one attempt. The consumer is part of what tells
-- deliveries apart: their counts begin anew when a group was destroyed and made again.
-- An entry that a client added with XADD has no hash yet: the job is made here, so plain Redis clients can submit. Its
-- run is the entry's time, which is above the run of any job of this id that has ended and been forgotten.
-- Cost O(log P + size of the parts), P = pending entries of the group. Server 7.0 or later.
local function start(keys, argv)
  local lane, job, events, results, parts, batch = keys[1], keys[2], keys[3], keys[4], keys[5], keys[6]
  local group, consumer, entry_id, deliveries, id, spec = argv[1], argv[2], argv[3], argv[4], argv[5], argv[6]
  local held = fence(lane, group, consumer, entry_id, deliveries)
  if held ~= OURS then return { held } end

  local now = now_ms()
  if redis.call('EXISTS', job) == 0 then
    local run = string.match(entry_id, '%d+')
    redis.call('HSET', job, 'spec', spec, 'run', run, 'created_ms', now, 'lane', lane, 'entry_id', entry_id)
    move(job, events, batch, id, 'queued', 'queued_ms', now)
  end
  local state, on, entry, cancel = unpack(redis.call('HMGET', job, 'state', 'lane', 'entry_id', 'cancel_requested'))
  -- A job that was queued before lanes were noted has none: its entry must not be taken for a stray, and be lost.
  if (on and on ~= lane) or entry ~= entry_id or (state ~= 'queued' and state ~= 'running') then
    retire(lane, group, entry_id)
    return { 2 }
  end
  if cancel then
    end_cancelled(results, job, events, parts, batch, id)
    retire(lane, group, entry_id)
    return { 3 }
  end
  local delivery = table.concat({ entry_id, deliveries, consumer }, '/')
  if state == 'queued' or redis.call('HGET', job, 'delivery') ~= delivery then
    redis.call('HINCRBY', job, 'attempts', 1)
    move(
      job, events, batch, id, 'running', 'started_ms', now, 'worker', consumer, 'delivery', delivery, 'progress', 0
    )
  end
  return { 1, redis.call('HGETALL', job), redis.call('HGETALL', parts) }
end

register('start', start, { 'allow-oom' })
