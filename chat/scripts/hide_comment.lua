-- Take one comment from view: redacted in every replay, unpinned if it was pinned.
--
-- KEYS[8] hidden   set: seqs of hidden comments
-- KEYS[9] pinned   string: seq of the pinned comment
-- ARGV[1] seq      of the comment
-- Returns {'ok', 1} when hidden now, {'ok', 0} when it was already; refused: unavailable, not_found.
-- All or none.
local gone = guard()
if gone then return gone end
local HIDDEN, PINNED, seq = KEYS[8], KEYS[9], ARGV[1]

if redis.call('SISMEMBER', HIDDEN, seq) == 1 then return {'ok', 0} end
local entry = redis.call('XRANGE', LOG, seq .. '-0', seq .. '-0')[1]
if not entry or entry[2][2] == '' or cjson.decode(entry[2][2]).type ~= 'comment.posted' then
  return refused('not_found')
end
redis.call('SADD', HIDDEN, seq)
if redis.call('GET', PINNED) == seq then
  redis.call('DEL', PINNED)
  put_state('pinned', '[{"a":0,"d":{}}]')
end
-- To the classes that had the comment; the redaction is what a later reader of the log goes by.
append(entry[2][4], '{"type":"comment.hidden","comment":' .. seq .. '}', true, seq)
return {'ok', 1}
