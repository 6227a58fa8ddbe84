-- Put a line in the announcement bar, or clear it.
--
-- KEYS  the spine only
-- ARGV[1] data    the state's data as JSON: {"text":…} or {}
-- ARGV[2] event   announcement.set as JSON
-- Returns {'ok', seq}; refused: unavailable, not_live (the show has ended).
-- All or none.
local gone = guard()
if gone then return gone end
if status() == 'ended' then return refused('not_live') end
put_state('announcement', '[{"a":0,"d":' .. ARGV[1] .. '}]')
return {'ok', append(0, ARGV[2], true)}
