-- Hold one comment in view, in place of the one pinned before.
--
-- KEYS[8] hidden   set: seqs of hidden comments
-- KEYS[9] pinned   string: seq of the pinned comment
-- ARGV[1] seq      of the comment
-- Returns {'ok', 1}, or {'ok', 0} when it is the pinned one already; refused: unavailable, not_found.
-- All or none.
local gone = guard()
if gone then return gone end
local HIDDEN, PINNED, seq = KEYS[8], KEYS[9], ARGV[1]

if redis.call('GET', PINNED) == seq then return {'ok', 0} end
local entry = redis.call('XRANGE', LOG, seq .. '-0', seq .. '-0')[1]
local found = entry and entry[2][2] ~= '' and cjson.decode(entry[2][2])
if not found or found.type ~= 'comment.posted' or redis.call('SISMEMBER', HIDDEN, seq) == 1 then
  return refused('not_found')
end
local words = '"text":' .. cjson.encode(found.text) .. ',"name":' .. cjson.encode(found.name) ..
  ',"badge":' .. cjson.encode(found.badge)
redis.call('SET', PINNED, seq)
put_state('pinned', '[{"a":0,"d":{"comment":{"seq":' .. seq .. ',' .. words .. '}}}]')
append(0, '{"type":"comment.pinned","comment":' .. seq .. ',' .. words .. '}', true)
return {'ok', 1}
