-- include: commerce/seats
-- Gives an unpaid seat back; it goes to the queue's head.
--
-- KEYS  as in seats.lua
-- ARGV  1 id · 2 member
--       3 'release' (the order ended: the person has had the seat) or 'undo' (the hold's own transaction rolled back)
--       4 with undo: token of the call that is undone; a seat that another one took stays
-- Returns {'ok', 1 given back | 0 held none}
-- All or none. A seat whose payment is being recorded is left alone.
local gone = benefit_guard() if gone then return gone end
local member = ARGV[2]
local other = ARGV[3] == 'undo' and redis.call('HGET', B, 'took:' .. member) ~= ARGV[4]
local had = other and 0 or let_go(member)
if had == 1 then
  redis.call('HINCRBY', B, 'freed', 1)
  if ARGV[3] == 'undo' then
    redis.call('SREM', HAD, member)
    tell(member, 'left')
  else
    tell(member, 'released')
  end
end
sweep()
show_counts()
return {'ok', had}
