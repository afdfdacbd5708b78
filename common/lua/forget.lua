-- forget: remove consumers that are gone and hold nothing.
-- KEYS  1 stream
-- ARGV  1 group  2 idle ms from which a consumer counts as gone
-- Returns how many were removed
-- Deleting a consumer drops what is pending for it, so only those with nothing pending go; in one function nothing
-- can be delivered in between. Cost O(C), C = consumers. Server 7.0 or later.
local function forget(keys, argv)
  local stream, group, gone_ms = keys[1], argv[1], tonumber(argv[2])
  local removed = 0
  for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', stream, group)) do
    local name, pending, idle_ms = consumer[2], consumer[4], consumer[6]
    if pending == 0 and idle_ms > gone_ms then
      redis.call('XGROUP', 'DELCONSUMER', stream, group, name)
      removed = removed + 1
    end
  end
  return removed
end

register('forget', forget, { 'allow-oom' })
