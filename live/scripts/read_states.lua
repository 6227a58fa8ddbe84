-- Purpose: what changed in a show since a version, read in one step: states, counters, audiences, status.
-- KEYS: the spine (prelude).
-- ARGV: 1 version the caller has (-1 reads everything); 2 how many log entries to read (0 for none).
-- Returns: {'ok', {version, seq, epoch, generation, status, open poll, audiences JSON, room audience JSON},
--           {key, version, parts JSON or '', {field, n, …}, …}, {{id, {field, value, …}}, … newest first}}
-- All or none: reads only.
local gone = whole_guard()
if gone then return gone end
local meta = redis.call('HMGET', META, 'version', 'seq', 'epoch', 'generation', 'status', 'poll',
  'audiences', 'room_audience')
for i = 1, 8 do meta[i] = meta[i] or '' end
local changed = redis.call('ZRANGEBYSCORE', VERSIONS, '(' .. ARGV[1], '+inf', 'WITHSCORES')
local counts = {}
if #changed > 0 then
  local flat = redis.call('HGETALL', COUNTS)
  for i = 1, #flat, 2 do
    local cut = string.find(flat[i], '|', 1, true)
    local key = string.sub(flat[i], 1, cut - 1)
    counts[key] = counts[key] or {}
    table.insert(counts[key], string.sub(flat[i], cut + 1))
    table.insert(counts[key], flat[i + 1])
  end
end
local states = {}
for i = 1, #changed, 2 do
  local key = changed[i]
  states[#states + 1] = key
  states[#states + 1] = changed[i + 1]
  states[#states + 1] = redis.call('HGET', STATES, key) or ''
  states[#states + 1] = counts[key] or {}
end
local entries = {}
if tonumber(ARGV[2]) > 0 then entries = redis.call('XREVRANGE', LOG, '+', '-', 'COUNT', ARGV[2]) end
return {'ok', meta, states, entries}
