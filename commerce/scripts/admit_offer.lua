-- Whether this show may open an offer now: from the waiting room until the last call.
--
-- KEYS  the spine only.
-- ARGV[1] kind   'pin' or 'flash' (a flash only while the show is live)
-- Returns {'ok', '1'}; refused: unavailable, not_live.
-- All or none: changes nothing.
local gone = guard()
if gone then return gone end
local current = status()
if current == 'live' then return {'ok', '1'} end
if ARGV[1] == 'pin' and (current == 'waiting' or current == 'paused') then return {'ok', '1'} end
return refused('not_live')
