-- renew: keep one entry ours, say how far its work is, and keep the parts of it that are done.
-- KEYS  1 stream  [2 job hash  3 event stream  4 parts hash]
-- ARGV  1 group  2 consumer  3 entry id  4 delivery count  5 id  6 progress 0 to 1, '' when unchanged
--       7 time to live of the parts in s  8… part, body, …
-- Returns 1 renewed | 0 lost to another consumer | -1 retired already | -2 renewed, but the job shall be cancelled
-- XCLAIM with JUSTID keeps the delivery count, and after the fence it cannot take an entry from another consumer.
-- A hash that somebody deleted is not made again: `start` would take its entry for a stray, and the job would be lost.
-- The parts live while their job is under way; the time to live is for jobs that somebody deletes by hand.
-- Cost O(log P + parts), P = pending entries of the group. Server 7.0 or later.
local function renew(keys, argv)
  local stream, job, events, parts = keys[1], keys[2], keys[3], keys[4]
  local group, consumer, entry_id, deliveries, id, progress = argv[1], argv[2], argv[3], argv[4], argv[5], argv[6]
  local held = fence(stream, group, consumer, entry_id, deliveries)
  if held ~= OURS then return held end

  redis.call('XCLAIM', stream, group, consumer, 0, entry_id, 'IDLE', 0, 'JUSTID')
  if not job then return 1 end
  if progress ~= '' and redis.call('EXISTS', job) == 1 then
    redis.call('HSET', job, 'progress', progress)
    emit(events, id, 'progress', progress)
  end
  for index = 8, #argv, 2 do
    redis.call('HSET', parts, argv[index], argv[index + 1])
  end
  if #argv >= 8 then redis.call('EXPIRE', parts, argv[7]) end
  if redis.call('HEXISTS', job, 'cancel_requested') == 1 then return -2 end
  return 1
end

register('renew', renew, { 'allow-oom' })
