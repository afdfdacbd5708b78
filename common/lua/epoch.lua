-- epoch: read the epoch. By answering at all it shows that the library is there, to users who may not list libraries.
-- KEYS  1 epoch
-- ARGV  none
-- Returns the epoch | nil on a server that has none
-- Cost O(1). Writes nothing. Server 7.0 or later.
local function epoch(keys)
  return redis.call('GET', keys[1])
end

register('epoch', epoch, { 'no-writes' })
