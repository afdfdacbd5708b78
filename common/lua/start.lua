-- start: begin one attempt of each of some jobs whose entries this consumer holds, all on one lane.
-- KEYS, ARGV  as `each_entry` has them
-- Returns for each entry
--         {{hash field, value, …}, {part, body, …}} started; a field may be named twice, its last value counts
--         0 lease lost | -1 retired already | 2 a stray: another entry carries this job, or it has ended; retired
--         3 cancelled meanwhile; retired
--         4 the job has no hash, nothing written: a client has added the entry with XADD, see `adopt`
-- May be repeated when its reply was lost: one delivery counts as one attempt. The consumer is part of what tells
-- deliveries apart: their counts begin anew when a group was destroyed and made again.
-- Cost O(N log P + size of the parts), N = entries, P = pending entries of the group. Server 7.0 or later.
local function start(keys, argv)
  local events, results, consumer = keys[2], keys[3], argv[2]
  local now, here = now_ms(), short(keys[1])

  return each_entry(keys, argv, 0, function(entry, through)
    local job, id, entry_id, deliveries = entry.job, entry.id, entry.entry_id, entry.deliveries
    local flat, was = redis.call('HGETALL', job), {}
    for index = 1, #flat, 2 do was[flat[index]] = flat[index + 1] end
    if #flat == 0 then return 4 end
    -- An older version noted the lane, or did not: its entry must not be taken for a stray, and be lost.
    local on = was.priority or was.lane or (was.source and 'normal') or here
    local waits = was.state == 'queued'
    if short(on) ~= here or was.entry_id ~= entry_id or not (waits or was.state == 'running') then
      through(entry_id)
      return 2
    end
    if was.cancel_requested then
      end_cancelled(results, job, events, entry.parts, entry.batch, id)
      through(entry_id)
      return 3
    end
    if waits or was.worker ~= consumer or was.delivery ~= deliveries then
      local begun = {
        'attempts', (was.attempts or 0) + 1, 'started_ms', now, 'worker', consumer, 'delivery', deliveries, 'progress', 0
      }
      move(job, events, entry.batch, id, 'running', unpack(begun))
      flat[#flat + 1], flat[#flat + 2] = 'state', 'running'
      for index = 1, #begun do flat[#flat + 1] = tostring(begun[index]) end
    end
    -- What was never delivered before has no parts.
    return { flat, was.delivery and redis.call('HGETALL', entry.parts) or {} }
  end)
end

register('start', start, { 'allow-oom' })
