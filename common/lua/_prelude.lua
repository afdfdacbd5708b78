-- Shared by all functions of the library; this file comes first when they are joined.
-- Words: a job's *lane* is the stream of its priority; to *retire* an entry is to acknowledge and delete it.

-- Functions carry the library's name, so the functions of two versions stand side by side during an upgrade.
local function register(name, callback, flags)
  redis.register_function { function_name = LIBRARY .. '_' .. name, callback = callback, flags = flags or {} }
end

-- The event stream only feeds live views: losing old entries is harmless, growing for ever is not.
local EVENTS_KEPT = 10000

-- What the fence says of an entry: ours, another consumer's (or another delivery's), or retired already.
local OURS, LOST, GONE = 1, 0, -1
-- What a settling function returns when a cancellation came first and ended the job.
local CANCELLED = 2

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Ownership first: nothing is written unless the entry is pending for this consumer with this delivery count.
local function fence(stream, group, consumer, entry_id, deliveries)
  local pending = redis.call('XPENDING', stream, group, entry_id, entry_id, 1)[1]
  if not pending then return GONE end
  if pending[2] ~= consumer or pending[4] ~= tonumber(deliveries) then return LOST end
  return OURS
end

local function retire(stream, group, ...)
  redis.call('XACK', stream, group, ...)
  redis.call('XDEL', stream, ...)
end

local function emit(events, id, ...)
  redis.call('XADD', events, 'MAXLEN', '~', EVENTS_KEPT, '*', 'id', id, ...)
end

-- Change a job's state together with the counters of its batch and the event stream. `batch` is nil for most jobs.
local function move(job, events, batch, id, state, ...)
  if batch then
    local from = redis.call('HGET', job, 'state')
    if from then redis.call('HINCRBY', batch, from, -1) end
    redis.call('HINCRBY', batch, state, 1)
  end
  redis.call('HSET', job, 'state', state, ...)
  emit(events, id, 'state', state)
end

-- The first run of an id is not noted in its hash: nearly all jobs are in it, and wait in memory.
local function run_of(job)
  return redis.call('HGET', job, 'run') or '1'
end

-- Pass an outcome to the writer. First of all writes: it is the one that may be refused.
local function publish(results, id, run, outcome, body)
  redis.call('XADD', results, '*', 'id', id, 'outcome', outcome, 'run', run, 'body', body)
end

-- The end of a job that somebody cancelled, wherever it was.
local function end_cancelled(results, job, events, parts, batch, id)
  publish(results, id, run_of(job), 'cancelled', '')
  redis.call('HDEL', job, 'cancel_requested')
  redis.call('DEL', parts)
  move(job, events, batch, id, 'cancelled', 'finished_ms', now_ms())
end

-- May this verdict be carried out? The fence, and a cancellation that came first: it ends the job whatever the verdict.
-- Expects the order that all settling functions share: KEYS lane, job, events, results, parts; ARGV group, consumer,
-- entry id, delivery count, id.
local function may_settle(keys, argv, batch)
  local lane, job, events, results, parts = keys[1], keys[2], keys[3], keys[4], keys[5]
  local group, consumer, entry_id, deliveries, id = argv[1], argv[2], argv[3], argv[4], argv[5]
  local held = fence(lane, group, consumer, entry_id, deliveries)
  if held == OURS and redis.call('HEXISTS', job, 'cancel_requested') == 1 then
    end_cancelled(results, job, events, parts, batch, id)
    retire(lane, group, entry_id)
    return CANCELLED
  end
  return held
end

-- A lane without the queue's name: high, normal or low.
local function short(lane)
  return string.match(lane, '[^:]*$')
end

-- What a job's hash notes of the entry that carries it: any other entry of that id is a stray. The lane is part of it, for
-- two lanes may give the same entry id; a priority of normal is not noted, since most jobs have it, and wait in memory.
local function carried_by(lane, entry_id)
  if short(lane) == 'normal' then return 'entry_id', entry_id end
  return 'entry_id', entry_id, 'priority', short(lane)
end

-- Put a job's entry on its lane; return what its hash must note of it, for `move`.
local function enqueue(lane, id, source, batch_id)
  if batch_id == '' then return carried_by(lane, redis.call('XADD', lane, '*', 'id', id, 'source', source)) end
  return carried_by(lane, redis.call('XADD', lane, '*', 'id', id, 'source', source, 'batch', batch_id))
end

-- In a call for many jobs, those of batches name the batch by its place in a list: 0 for none, which most have.
local function listed(list, before, number)
  if number ~= '0' then return list[before + number] end
end

-- Do one thing for each of many. An error blames that one alone: it is its reply, and the others are done.
local function each(count, one)
  local replies = {}
  for number = 1, count do
    local done, reply = pcall(one, number)
    if not done and type(reply) ~= 'table' then reply = { err = tostring(reply) } end
    replies[number] = reply
  end
  return replies
end

-- The fence for many: one look at what the consumer holds from the first of them on. Who is not seen is asked for alone.
local function fences(stream, group, consumer, first, count)
  local held = {}
  if count > 1 then
    for _, pending in ipairs(redis.call('XPENDING', stream, group, first, '+', 2 * count, consumer)) do
      held[pending[1]] = pending[4]
    end
  end
  return function(entry_id, deliveries)
    if held[entry_id] == tonumber(deliveries) then return OURS end
    return fence(stream, group, consumer, entry_id, deliveries)
  end
end

-- Do one thing for each of many entries of a lane that are still ours, and retire those that it calls `through` for. An
-- entry may be named twice: to a consumer that reads on after its group was made anew the same delivery comes again.
-- KEYS  1 lane  2 event stream  3 results stream  then for each entry: job hash, parts hash  then hashes of batches
-- ARGV  1 group  2 consumer  3 how many entries
--       then for each: entry id, delivery count, id, number of its batch's hash or 0, and `more` that `one` is told
-- Returns what `one` returns for each, what the fence says of an entry that is not ours, or the error that blames one.
local function each_entry(keys, argv, more, one)
  local lane, group, consumer, count = keys[1], argv[1], argv[2], tonumber(argv[3])
  local fenced, width = fences(lane, group, consumer, argv[4], count), 4 + more
  local retired, is_retired = {}, {}
  local function through(entry_id)
    retired[#retired + 1], is_retired[entry_id] = entry_id, true
  end
  local replies = each(count, function(number)
    local at = 4 + width * (number - 1)
    local entry = {
      entry_id = argv[at],
      deliveries = argv[at + 1],
      id = argv[at + 2],
      batch = listed(keys, 3 + 2 * count, argv[at + 3]),
      job = keys[2 * number + 2],
      parts = keys[2 * number + 3],
    }
    local held = is_retired[entry.entry_id] and GONE or fenced(entry.entry_id, entry.deliveries)
    if held ~= OURS then return held end
    return one(entry, through, unpack(argv, at + 4, at + 3 + more))
  end)
  if #retired > 0 then retire(lane, group, unpack(retired)) end
  return replies
end
