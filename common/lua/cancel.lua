-- cancel: take a job out of the queue, or ask the consumer that runs it to stop.
-- KEYS  1 job hash  2 event stream  3 results stream  4 delayed set  5 lane  6 parts hash  [7 batch hash]
-- ARGV  1 id  2 group
-- Returns 1 cancelled | 2 running: its consumer will stop it | 0 too late: transcribed or ended | -1 unknown id
-- A running job whose entry somebody deleted has no consumer to stop it: it ends here, or it would run for ever.
-- Runs at maxmemory too. Cost O(log P + log D). Server 7.0 or later.
local function cancel(keys, argv)
  local job, events, results, delayed, lane = keys[1], keys[2], keys[3], keys[4], keys[5]
  local parts, batch = keys[6], keys[7]
  local id, group = argv[1], argv[2]
  local state, entry_id = unpack(redis.call('HMGET', job, 'state', 'entry_id'))
  if not state then return -1 end

  if state == 'running' and redis.call('XPENDING', lane, group, entry_id, entry_id, 1)[1] then
    redis.call('HSET', job, 'cancel_requested', 1)
    return 2
  end
  if state ~= 'queued' and state ~= 'scheduled' and state ~= 'running' then return 0 end
  end_cancelled(results, job, events, parts, batch, id)
  if state == 'scheduled' then
    redis.call('ZREM', delayed, id)
  else
    retire(lane, group, entry_id)
  end
  return 1
end

register('cancel', cancel, { 'allow-oom' })
