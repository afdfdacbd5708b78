-- submit: accept a job once, or say why not.
-- KEYS  1 job hash  2 event stream  3 delayed set  4 lane  5-7 all lanes  [8 batch hash]
-- ARGV  1 id  2 source  3 spec JSON  4 run  5 due at, server ms, 0 = not given  6 delay in ms  7 most jobs under way
--       8 batch id, '' for none
-- Returns 1 queued | 2 scheduled | 0 known, same spec, nothing changed | -1 known, other spec | -2 full
-- An id is accepted once for as long as its hash lives; the caller asks the database about older ones.
-- Not allowed at maxmemory: a full server refuses new work first. Cost O(1). Server 7.0 or later.
local function submit(keys, argv)
  local job, events, delayed, lane, batch = keys[1], keys[2], keys[3], keys[4], keys[8]
  local id, source, spec, run, batch_id = argv[1], argv[2], argv[3], argv[4], argv[8]
  local due_ms, delay_ms, most = tonumber(argv[5]), tonumber(argv[6]), tonumber(argv[7])

  local known = redis.call('HGET', job, 'spec')
  if known then
    if known ~= spec then return -1 end
    -- The same again, as a write: the repeat's yes, too, comes only after the server has synced the job, and what a
    -- caller then waits for a replica to confirm is not some earlier write.
    redis.call('HSET', job, 'spec', spec)
    return 0
  end
  local under_way = redis.call('ZCARD', delayed)
  for lane_index = 5, 7 do under_way = under_way + redis.call('XLEN', keys[lane_index]) end
  if under_way >= most then return -2 end

  local now = now_ms()
  if delay_ms > 0 then due_ms = now + delay_ms end
  redis.call('HSET', job, 'spec', spec, 'run', run, 'created_ms', now)
  if due_ms > now then
    redis.call('ZADD', delayed, due_ms, id)
    move(job, events, batch, id, 'scheduled')
    return 2
  end
  enqueue(lane, job, id, source, batch_id)
  move(job, events, batch, id, 'queued', 'queued_ms', now)
  return 1
end

register('submit', submit)
