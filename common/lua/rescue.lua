-- rescue: take over entries whose consumer stopped renewing, with the delivery counts that fence them.
-- KEYS  the streams, most urgent first
-- ARGV  1 group  2 consumer  3 idle ms from which an entry counts as abandoned  4 most entries  5… cursor of each stream
-- Returns for each stream
--         {next cursor, '0-0' when the round is over; {{entry id, deliveries, {field, value, …}}, …}; {deleted ids}}
-- XAUTOCLAIM drops entries whose payload is gone from the pending list and names them in the third list.
-- Cost O(N), N = 10 x most entries at worst for each stream. Server 7.0 or later.
local function rescue(keys, argv)
  local group, consumer, min_idle_ms, left = argv[1], argv[2], argv[3], tonumber(argv[4])
  local found = {}
  for index, stream in ipairs(keys) do
    local cursor = argv[4 + index]
    if left <= 0 then
      found[index] = { cursor, {}, {} }
    else
      local page = redis.call('XAUTOCLAIM', stream, group, consumer, min_idle_ms, cursor, 'COUNT', left)
      local entries = {}
      for number, entry in ipairs(page[2]) do
        local pending = redis.call('XPENDING', stream, group, entry[1], entry[1], 1)[1]
        entries[number] = { entry[1], pending[4], entry[2] }
      end
      left = left - #entries
      found[index] = { page[1], entries, page[3] }
    end
  end
  return found
end

register('rescue', rescue, { 'allow-oom' })
