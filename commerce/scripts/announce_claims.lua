-- include: commerce/seats
-- After the commit: counts claims as confirmed and tells everybody of the audience, each once.
--
-- KEYS  as in seats.lua
-- ARGV  1 id · 2 sold-out event JSON · 3… fives: member, rank, nth, event JSON, behaviour record JSON or ''
-- Returns {'ok', [rank newly told, …]}
-- All or none; a rank already told changes nothing.
assert((#ARGV - 2) % 5 == 0, 'claims come in fives')
local gone = benefit_guard() if gone then return gone end
local told = {}
for i = 3, #ARGV, 5 do
  local member, rank = ARGV[i], ARGV[i + 1]
  redis.call('HDEL', SETTLING, terms.needs == 'join' and member or rank)
  if redis.call('SETBIT', TOLD, rank, 1) == 0 then
    if redis.call('HDEL', B, 'counted:' .. rank) == 0 then redis.call('HINCRBY', B, 'confirmed', 1) end
    if terms.needs == 'join' then
      redis.call('ZREM', HELD, member)
      redis.call('ZREM', QUEUE, member)
    end
    local ranks = redis.call('HGET', CLAIMS, member)
    if not ranks then redis.call('HSET', CLAIMS, member, rank)
    elseif not string.find(',' .. ranks .. ',', ',' .. rank .. ',', 1, true) then
      redis.call('HSET', CLAIMS, member, ranks .. ',' .. rank)
    end
    append(terms.bit, ARGV[i + 3])
    behave(ARGV[i + 4])
    told[#told + 1] = rank
  end
end
if number('confirmed') >= number('quota') and redis.call('HGET', B, 'sold_told') ~= '1' then
  redis.call('HSET', B, 'sold_told', 1)
  append(terms.bit, ARGV[2], true)
end
sweep()
show_counts()
return {'ok', told}
