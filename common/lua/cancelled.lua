-- cancelled: end a running job that its consumer stopped because somebody cancelled it.
-- KEYS  1 lane  2 job hash  3 event stream  4 results stream  5 parts hash  [6 batch hash]
-- ARGV  1 group  2 consumer  3 entry id  4 delivery count  5 id
-- Returns 1 retired | 0 lease lost, nothing written | -1 retired already, nothing written
-- Runs at maxmemory too. Cost O(log P), P = pending entries of the group. Server 7.0 or later.
local function cancelled(keys, argv)
  local lane, job, events, results, parts, batch = keys[1], keys[2], keys[3], keys[4], keys[5], keys[6]
  local group, consumer, entry_id, deliveries, id = argv[1], argv[2], argv[3], argv[4], argv[5]
  local held = fence(lane, group, consumer, entry_id, deliveries)
  if held ~= OURS then return held end

  end_cancelled(results, job, events, parts, batch, id)
  retire(lane, group, entry_id)
  return 1
end

register('cancelled', cancelled, { 'allow-oom' })
