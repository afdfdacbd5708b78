-- release: leave an entry for another consumer to take at once; the attempt does not count.
-- KEYS  1 stream  [2 job hash  3 event stream  4 batch hash]
-- ARGV  1 group  2 consumer  3 entry id  4 delivery count  5 id  6 name that released entries are pending for
-- Returns 1 released | 0 lease lost, nothing written | -1 retired already, nothing written
-- The entry keeps its place in the stream: it goes, idle for a day, to a consumer that nobody is, and the next
-- rescue takes it. A hash that somebody deleted is not made again: `start` would take the entry for a stray.
-- Cost O(log P), P = pending entries of the group. Server 7.0 or later.
local function release(keys, argv)
  local stream, job, events, batch = keys[1], keys[2], keys[3], keys[4]
  local group, consumer, entry_id, deliveries, id, released = argv[1], argv[2], argv[3], argv[4], argv[5], argv[6]
  local held = fence(stream, group, consumer, entry_id, deliveries)
  if held ~= OURS then return held end

  redis.call('XCLAIM', stream, group, released, 0, entry_id, 'IDLE', 86400000, 'JUSTID')
  if job and redis.call('EXISTS', job) == 1 then
    redis.call('HINCRBY', job, 'attempts', -1)
    move(job, events, batch, id, 'queued')
  end
  return 1
end

register('release', release, { 'allow-oom' })
