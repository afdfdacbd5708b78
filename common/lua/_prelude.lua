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

local function retire(stream, group, entry_id)
  redis.call('XACK', stream, group, entry_id)
  redis.call('XDEL', stream, entry_id)
end

local function emit(events, id, ...)
  redis.call('XADD', events, 'MAXLEN', '~', EVENTS_KEPT, '*', 'id', id, ...)
end

-- Change a job's state together with the counters of its batch and the event stream. `batch` is nil for most jobs.
local function move(job, events, batch, id, state, ...)
  local from = redis.call('HGET', job, 'state')
  redis.call('HSET', job, 'state', state, ...)
  if batch then
    if from then redis.call('HINCRBY', batch, from, -1) end
    redis.call('HINCRBY', batch, state, 1)
  end
  emit(events, id, 'state', state)
end

-- Pass an outcome to the writer. First of all writes: it is the one that may be refused.
local function publish(results, job, id, outcome, body)
  local run = redis.call('HGET', job, 'run') or '1'
  redis.call('XADD', results, '*', 'id', id, 'outcome', outcome, 'run', run, 'body', body)
end

-- The end of a job that somebody cancelled, wherever it was.
local function end_cancelled(results, job, events, parts, batch, id)
  publish(results, job, id, 'cancelled', '')
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

-- Put a job's entry on its lane and note in the hash which entry it is: any other entry of that id is a stray. The lane is
-- part of it: two lanes may give the same entry id.
local function enqueue(lane, job, id, source, batch_id)
  local fields = { 'id', id, 'source', source }
  if batch_id ~= '' then
    fields[5], fields[6] = 'batch', batch_id
  end
  redis.call('HSET', job, 'lane', lane, 'entry_id', redis.call('XADD', lane, '*', unpack(fields)))
end
