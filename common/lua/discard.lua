-- discard: move an entry that no handler can ever work on to the dead letters, as it was found.
-- KEYS  1 stream  2 dead letter stream  [3 job hash  4 event stream  5 batch hash]
-- ARGV  1 group  2 consumer  3 entry id  4 delivery count  5 id, '' when it has none  6 error JSON  7 reason
--       8 the entry's fields as a JSON list, for whoever revives it  9 the run that it is the result of
-- A result that can never be stored ends its job as failed: nobody waits for ever for one that stays transcribed. It is
-- the dead letter of its job then, but not of one that was revived meanwhile and is in a later run, nor of one that has
-- a dead letter already: that one needs the hash to be revived, this one carries all that it needs.
-- Returns 1 discarded | 0 lease lost, nothing written | -1 retired already, nothing written
-- Runs at maxmemory too. Cost O(log P), P = pending entries of the group. Server 7.0 or later.
local function discard(keys, argv)
  local stream, dead, job, events, batch = keys[1], keys[2], keys[3], keys[4], keys[5]
  local group, consumer, entry_id, deliveries, id = argv[1], argv[2], argv[3], argv[4], argv[5]
  local failure, reason, fields, run = argv[6], argv[7], argv[8], argv[9]
  local held = fence(stream, group, consumer, entry_id, deliveries)
  if held ~= OURS then return held end

  local dead_id =
    redis.call('XADD', dead, '*', 'id', id, 'reason', reason, 'error', failure, 'stream', stream, 'fields', fields)
  retire(stream, group, entry_id)
  if not job then return 1 end
  local state, first = unpack(redis.call('HMGET', job, 'state', 'dead_id'))
  if not state or run_of(job) ~= run then return 1 end
  if not first then redis.call('HSET', job, 'dead_id', dead_id) end
  if state == 'transcribed' then
    move(job, events, batch, id, 'failed', 'error', failure)
  end
  return 1
end

register('discard', discard, { 'allow-oom' })
