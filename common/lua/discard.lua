-- discard: move an entry that no handler can ever work on to the dead letters, as it was found.
-- KEYS  1 stream  2 dead letter stream
-- ARGV  1 group  2 consumer  3 entry id  4 delivery count  5 id, '' when it has none  6 error JSON  7 reason
--       8 the entry's fields as a JSON list, for whoever revives it
-- Returns 1 discarded | 0 lease lost, nothing written | -1 retired already, nothing written
-- Runs at maxmemory too. Cost O(log P), P = pending entries of the group. Server 7.0 or later.
local function discard(keys, argv)
  local stream, dead = keys[1], keys[2]
  local group, consumer, entry_id, deliveries, id = argv[1], argv[2], argv[3], argv[4], argv[5]
  local failure, reason, fields = argv[6], argv[7], argv[8]
  local held = fence(stream, group, consumer, entry_id, deliveries)
  if held ~= OURS then return held end

  redis.call('XADD', dead, '*', 'id', id, 'reason', reason, 'error', failure, 'stream', stream, 'fields', fields)
  retire(stream, group, entry_id)
  return 1
end

register('discard', discard, { 'allow-oom' })
