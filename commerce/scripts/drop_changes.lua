-- include: commerce/seats
-- Drops the changes of seats that are written and told.
--
-- KEYS  as in seats.lua
-- ARGV  1 id · 2 generation · 3 number of the last change told
-- Returns {'ok', how many were dropped}
-- All or none; again it changes nothing.
local gone = benefit_guard() if gone then return gone end
if terms.generation ~= ARGV[2] then return {'ok', 0} end
local dropped = 0
while true do
  local head = redis.call('LINDEX', OUTBOX, 0)
  if not head or cjson.decode(head).v > tonumber(ARGV[3]) then break end
  redis.call('LPOP', OUTBOX)
  dropped = dropped + 1
end
return {'ok', dropped}
