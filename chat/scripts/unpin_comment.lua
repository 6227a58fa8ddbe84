-- Let the pinned comment go.
--
-- KEYS[8] pinned   string: seq of the pinned comment
-- Returns {'ok', 1}, or {'ok', 0} when none was pinned; refused: unavailable.
-- All or none.
local gone = guard()
if gone then return gone end
local seq = redis.call('GET', KEYS[8])
if not seq then return {'ok', 0} end
redis.call('DEL', KEYS[8])
put_state('pinned', '[{"a":0,"d":{}}]')
append(0, '{"type":"comment.unpinned","comment":' .. seq .. '}', true)
return {'ok', 1}
