-- renew: keep one entry ours, and say how far its work is.
-- KEYS  1 stream  [2 job hash  3 event stream]
-- ARGV  1 group  2 consumer  3 entry id  4 delivery count  5 id  6 progress 0 to 1, '' when unchanged
-- Returns 1 renewed | 0 lost to another consumer | -1 retired already | -2 renewed, but the job shall be cancelled
-- XCLAIM with JUSTID keeps the delivery count, and after the fence it cannot take an entry from another consumer.
-- Cost O(log P), P = pending entries of the group. Server 7.0 or later.
local function renew(keys, argv)
  local stream, job, events = keys[1], keys[2], keys[3]
  local group, consumer, entry_id, deliveries, id, progress = argv[1], argv[2], argv[3], argv[4], argv[5], argv[6]
  local held = fence(stream, group, consumer, entry_id, deliveries)
  if held ~= OURS then return held end

  redis.call('XCLAIM', stream, group, consumer, 0, entry_id, 'IDLE', 0, 'JUSTID')
  if not job then return 1 end
  if progress ~= '' then
    redis.call('HSET', job, 'progress', progress)
    emit(events, id, 'progress', progress)
  end
  if redis.call('HEXISTS', job, 'cancel_requested') == 1 then return -2 end
  return 1
end

register('renew', renew, { 'allow-oom' })
