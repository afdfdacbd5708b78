-- complete: publish transcripts and retire their entries, each only while its lease is still ours.
-- KEYS, ARGV  as `each_entry` has them, and for each entry: transcript JSON, seconds of audio
-- Returns for each entry 1 published | 0 lease lost, nothing written | -1 retired already, nothing written
--         2 retired as cancelled: the cancellation came first, the transcript is dropped
-- Runs at maxmemory too: settling is what drains a full server.
-- Cost O(N log P), N = entries, P = pending entries of the group. Server 7.0 or later.
local function complete(keys, argv)
  local events, results = keys[2], keys[3]
  local now, done = now_ms(), {}
  local replies = each_entry(keys, argv, 2, function(entry, through, transcript, audio_s)
    local job, id = entry.job, entry.id
    local cancel, run, failure = unpack(redis.call('HMGET', job, 'cancel_requested', 'run', 'error'))
    if cancel then
      end_cancelled(results, job, events, entry.parts, entry.batch, id)
      through(entry.entry_id)
      return CANCELLED
    end
    publish(results, id, run or '1', 'completed', transcript)
    through(entry.entry_id)
    if failure then redis.call('HDEL', job, 'error') end
    done[#done + 1] = entry.parts
    move(job, events, entry.batch, id, 'transcribed', 'finished_ms', now, 'audio_s', audio_s, 'progress', 1)
    return 1
  end)
  if #done > 0 then redis.call('DEL', unpack(done)) end
  return replies
end

register('complete', complete, { 'allow-oom' })
