-- readd: put a discarded entry back on the stream it came from.
-- KEYS  1 dead letter stream  2 the stream it came from  [3 hash of the job that it names]
-- ARGV  1 id of the dead letter  2… field, value, …
-- Returns 1 added | 0 no such dead letter, nothing written
-- Cost O(1). Server 7.0 or later.
local function readd(keys, argv)
  local dead, stream, job, dead_id = keys[1], keys[2], keys[3], argv[1]
  if not redis.call('XRANGE', dead, dead_id, dead_id)[1] then return 0 end

  -- The write that may be refused comes first: nothing rolls a function back, and a lost letter is a lost job.
  redis.call('XADD', stream, '*', unpack(argv, 2))
  redis.call('XDEL', dead, dead_id)
  if job and redis.call('HGET', job, 'dead_id') == dead_id then redis.call('HDEL', job, 'dead_id') end
  return 1
end

register('readd', readd)
