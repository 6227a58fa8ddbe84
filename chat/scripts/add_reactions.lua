-- Add one node's merged reactions to the show's totals.
--
-- KEYS  the spine only
-- ARGV: pairs of kind and number, checked by the caller
-- Returns {'ok', 1}; refused: unavailable, not_live (the show has not opened, or has ended).
-- All or none.
local gone = guard()
if gone then return gone end
local current = status()
if current == 'scheduled' or current == 'ended' then return refused('not_live') end
for index = 1, #ARGV, 2 do count('reactions', ARGV[index], ARGV[index + 1]) end
if redis.call('HEXISTS', STATES, 'reactions') == 1 then
  touch_state('reactions')
else
  put_state('reactions', '[{"a":0,"d":{},"counts":["*"]}]')
end
return {'ok', 1}
