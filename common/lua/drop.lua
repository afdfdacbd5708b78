-- drop: forget a dead letter; the job's hash goes when its time to live is over.
-- KEYS  1 dead letter stream  [2 job hash]
-- ARGV  1 id of the dead letter  2 time to live of the hash in s
-- Returns 1 dropped | 0 no such dead letter
-- Cost O(1). Server 7.0 or later.
local function drop(keys, argv)
  local dead, job = keys[1], keys[2]
  local dead_id, ttl_s = argv[1], argv[2]
  if redis.call('XDEL', dead, dead_id) == 0 then return 0 end
  if job and redis.call('HGET', job, 'dead_id') == dead_id then
    redis.call('HDEL', job, 'dead_id')
    redis.call('EXPIRE', job, ttl_s)
  end
  return 1
end

register('drop', drop, { 'allow-oom' })
