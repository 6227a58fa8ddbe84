-- How many comments a show has had, by time.
--
-- KEYS[8] pace     hash: ten-second slot -> comments posted in it
-- Returns {'ok', last minute, all}; refused: unavailable. The minute is the six slots before the running
-- one and the part of the running one, so it covers 60 to 70 s.
-- All or none: reads only.
local gone = guard()
if gone then return gone end
local slot, minute, all = math.floor(NOW / 10000), 0, 0
local found = redis.call('HGETALL', KEYS[8])
for index = 1, #found, 2 do
  local number = tonumber(found[index + 1])
  all = all + number
  if slot - tonumber(found[index]) <= 6 then minute = minute + number end
end
return {'ok', minute, all}
