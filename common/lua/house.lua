-- house: forget consumers that are gone and hold nothing; say what is due, and how much the writer has not stored.
-- KEYS  1… streams of the group  [then delayed set, results stream]
-- ARGV  1 group  2 idle ms from which a consumer counts as gone  3 how many streams  4 most ids of jobs that are due
-- Returns {how many consumers were removed, {ids of jobs that are due, longest first}, length of the results stream}
-- Deleting a consumer drops what is pending for it, so only those with nothing pending go; in one function nothing
-- can be delivered in between. Cost O(C + due ids), C = consumers. Server 7.0 or later.
local function house(keys, argv)
  local group, gone_ms, count, most = argv[1], tonumber(argv[2]), tonumber(argv[3]), argv[4]
  local removed = 0
  for index = 1, count do
    for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', keys[index], group)) do
      local name, pending, idle_ms = consumer[2], consumer[4], consumer[6]
      if pending == 0 and idle_ms > gone_ms then
        redis.call('XGROUP', 'DELCONSUMER', keys[index], group, name)
        removed = removed + 1
      end
    end
  end
  local delayed, results = keys[count + 1], keys[count + 2]
  if not delayed then return { removed, {}, 0 } end
  local due = redis.call('ZRANGE', delayed, '-inf', now_ms(), 'BYSCORE', 'LIMIT', 0, most)
  return { removed, due, redis.call('XLEN', results) }
end

register('house', house, { 'allow-oom' })
