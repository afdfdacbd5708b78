-- rescue: take over entries whose consumer stopped renewing, with the delivery counts that fence them.
-- KEYS  1 stream
-- ARGV  1 group  2 consumer  3 idle ms from which an entry counts as abandoned  4 cursor  5 most entries
-- Returns {next cursor, '0-0' when the round is over; {{entry id, deliveries, {field, value, …}}, …}; {deleted ids}}
-- XAUTOCLAIM drops entries whose payload is gone from the pending list and names them in the third list.
-- Cost O(N), N = 10 x most entries at worst. Server 7.0 or later.
local function rescue(keys, argv)
  local stream = keys[1]
  local group, consumer, min_idle_ms, cursor, count = argv[1], argv[2], argv[3], argv[4], argv[5]
  local page = redis.call('XAUTOCLAIM', stream, group, consumer, min_idle_ms, cursor, 'COUNT', count)
  local entries = {}
  for index, entry in ipairs(page[2]) do
    local pending = redis.call('XPENDING', stream, group, entry[1], entry[1], 1)[1]
    entries[index] = { entry[1], pending[4], entry[2] }
  end
  return { page[1], entries, page[3] }
end

register('rescue', rescue, { 'allow-oom' })
