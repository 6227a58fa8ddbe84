-- include: commerce/seats
-- PostgreSQL did not take these decisions, which nobody was told: their ranks are spare again.
--
-- KEYS  as in seats.lua
-- ARGV  1 id · 2 generation they were decided in
--       3 '1' when PostgreSQL knows other ranks than we do: the counters are dropped, to be built anew
--       4… threes: member, rank, key
-- Returns {'ok', how many were returned}
-- All or none.
assert((#ARGV - 3) % 3 == 0, 'decisions come in threes')
local gone = benefit_guard() if gone then return gone end
if terms.generation ~= ARGV[2] then return {'ok', 0} end
local returned = 0
for i = 4, #ARGV, 3 do
  local member, rank, key = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  if redis.call('HDEL', SETTLING, rank) == 1 then
    local kept = {}
    for other in string.gmatch(redis.call('HGET', CLAIMS, member) or '', '%d+') do
      if other ~= rank then kept[#kept + 1] = other end
    end
    if #kept > 0 then redis.call('HSET', CLAIMS, member, table.concat(kept, ','))
    else redis.call('HDEL', CLAIMS, member) end
    redis.call('HDEL', REPLIES, member .. ':' .. key)
    redis.call('ZADD', SPARE, rank, rank)
    redis.call('HINCRBY', B, 'freed', 1)
    returned = returned + 1
  end
end
if ARGV[3] == '1' then redis.call('HDEL', B, 'generation') else show_counts() end
return {'ok', returned}
