-- submit: accept jobs, each once, or say why not.
-- KEYS  1 event stream  2 delayed set  3-5 all lanes  then a job hash for each job  then hashes of batches
-- ARGV  1 most jobs under way  2 how many jobs
--       then for each: id, source, spec JSON without the source ('' for nothing else), run, due at in server ms or 0,
--       delay in ms or 0, number of its lane, number of its batch's hash or 0  then ids of the batches
-- Returns for each job 1 queued | 2 scheduled | 0 known, same spec, nothing changed | -1 known, other spec | -2 full
-- An id is accepted once for as long as its hash lives; the caller asks the database about older ones.
-- What is so of nearly all jobs while they wait is not noted: the first run, and that they were queued when they came.
-- Not allowed at maxmemory: a full server refuses new work first. Cost O(N), N = jobs. Server 7.0 or later.
local function submit(keys, argv)
  local events, delayed = keys[1], keys[2]
  local most, count = tonumber(argv[1]), tonumber(argv[2])
  local under_way = redis.call('ZCARD', delayed)
  for lane_index = 3, 5 do under_way = under_way + redis.call('XLEN', keys[lane_index]) end
  local now = now_ms()

  return each(count, function(number)
    local job = keys[5 + number]
    local id, source, spec, run, due_at, delay_ms, lane_number, batch_number = unpack(argv, 8 * number - 5, 8 * number + 2)
    local known_source, known_spec = unpack(redis.call('HMGET', job, 'source', 'spec'))
    if known_source or known_spec then
      -- A version before this one kept the source within the spec.
      if (known_spec or '') ~= spec or (known_source or source) ~= source then return -1 end
      -- The same again, as a write: the repeat's yes, too, comes only after the server has synced the job, and what a
      -- caller then waits for a replica to confirm is not some earlier write.
      redis.call('HSET', job, known_source and 'source' or 'spec', known_source or known_spec)
      return 0
    end
    if under_way >= most then return -2 end

    under_way = under_way + 1
    local fields = { 'source', source, 'created_ms', now }
    local function note(...)
      for _, value in ipairs { ... } do fields[#fields + 1] = value end
    end
    if spec ~= '' then note('spec', spec) end
    if run ~= '1' then note('run', run) end
    local batch = listed(keys, 5 + count, batch_number)
    local due_ms = delay_ms ~= '0' and now + delay_ms or tonumber(due_at)
    if due_ms > now then
      redis.call('ZADD', delayed, due_ms, id)
      note('queued_ms', 0)
      move(job, events, batch, id, 'scheduled', unpack(fields))
      return 2
    end
    note(enqueue(keys[2 + lane_number], id, source, listed(argv, 2 + 8 * count, batch_number) or ''))
    move(job, events, batch, id, 'queued', unpack(fields))
    return 1
  end)
end

register('submit', submit)
