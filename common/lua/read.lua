-- read: take new entries, from one stream after another.
-- KEYS  the streams, most urgent first
-- ARGV  1 group  2 consumer  3 most entries
-- Returns for each stream {{entry id, {field, value, …}}, …}
-- COUNT of XREADGROUP counts for each stream, so streams in order take a call each: here, not over the network.
-- Cost O(entries). Server 7.0 or later.
local function read(keys, argv)
  local group, consumer, left = argv[1], argv[2], tonumber(argv[3])
  local found = {}
  for index, stream in ipairs(keys) do
    local reply = left > 0 and redis.call('XREADGROUP', 'GROUP', group, consumer, 'COUNT', left, 'STREAMS', stream, '>')
    found[index] = reply and reply[1][2] or {}
    left = left - #found[index]
  end
  return found
end

register('read', read, { 'allow-oom' })
