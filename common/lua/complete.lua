-- complete: publish one transcript and retire its entry, only while the lease is still ours.
-- KEYS  1 lane  2 job hash  3 event stream  4 results stream  5 parts hash  [6 batch hash]
-- ARGV  1 group  2 consumer  3 entry id  4 delivery count  5 id  6 transcript JSON  7 seconds of audio
-- Returns 1 published | 0 lease lost, nothing written | -1 retired already, nothing written
--         2 retired as cancelled: the cancellation came first, the transcript is dropped
-- Runs at maxmemory too: settling is what drains a full server.
-- Cost O(log P), P = pending entries of the group. Server 7.0 or later.
local function complete(keys, argv)
  local lane, job, events, results, parts, batch = keys[1], keys[2], keys[3], keys[4], keys[5], keys[6]
  local group, entry_id, id = argv[1], argv[3], argv[5]
  local transcript, audio_s = argv[6], argv[7]
  local held = may_settle(keys, argv, batch)
  if held ~= OURS then return held end

  publish(results, job, id, 'completed', transcript)
  retire(lane, group, entry_id)
  redis.call('HDEL', job, 'error')
  redis.call('DEL', parts)
  move(job, events, batch, id, 'transcribed', 'finished_ms', now_ms(), 'audio_s', audio_s, 'progress', 1)
  return 1
end

register('complete', complete, { 'allow-oom' })
