-- adopt: make the job of an entry that a client has added with XADD, so that plain Redis clients can submit.
-- KEYS  1 lane  2 job hash  3 event stream  [4 batch hash]
-- ARGV  1 group  2 consumer  3 entry id  4 delivery count  5 id  6 source  7 spec JSON without the source, '' for none
-- Returns 1 it is queued now, `start` can begin it, or it has a hash already | 0 lease lost | -1 retired already
-- Its run is the entry's time, which is above the run of any job of this id that has ended and been forgotten.
-- Runs at maxmemory too: the entry is there already. Cost O(log P), P = pending entries of the group. Server 7.0 or later.
local function adopt(keys, argv)
  local lane, job, events, batch = keys[1], keys[2], keys[3], keys[4]
  local group, consumer, entry_id, deliveries, id, source, spec = unpack(argv)
  local held = fence(lane, group, consumer, entry_id, deliveries)
  if held ~= OURS or redis.call('EXISTS', job) == 1 then return held end

  local run = string.match(entry_id, '%d+')
  if spec ~= '' then redis.call('HSET', job, 'spec', spec) end
  redis.call('HSET', job, 'source', source, 'run', run, 'created_ms', now_ms())
  move(job, events, batch, id, 'queued', carried_by(lane, entry_id))
  return 1
end

register('adopt', adopt, { 'allow-oom' })
