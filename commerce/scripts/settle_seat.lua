-- include: commerce/seats
-- Keeps a seat for a verified payment while its row is written: the held one, else a free one of what is not closed.
--
-- KEYS  as in seats.lua
-- ARGV  1 id · 2 member · 3 token of this recording · 4 '1' when the tables say that it is closed, else ''
-- Returns {'ok', 'settling' | 'confirmed' | 'sold_out' | 'reserved_out' | 'closed', generation, 1 had a seat before | 0}
-- All or none. Once settling, a repeat only changes the token.
local gone = benefit_guard() if gone then return gone end
local member = ARGV[2]
sweep()
local function answer(word)
  show_counts()
  return {'ok', word, terms.generation, redis.call('SISMEMBER', HAD, member)}
end
local function settle(until_ms, place)
  let_go(member)
  redis.call('ZREM', QUEUE, member)
  redis.call('HSET', SETTLING, member, string.format('%.0f|%s|%s|%s', NOW, until_ms, place, ARGV[3]))
  return answer('settling')
end

if redis.call('HEXISTS', CLAIMS, member) == 1 then return answer('confirmed') end
local settling = redis.call('HGET', SETTLING, member)
if settling then return settle(string.match(settling, '^%d+|(%d*)|(%d*)|')) end
local until_ms = redis.call('ZSCORE', HELD, member)
if until_ms then return settle(until_ms, '') end
if ARGV[4] == '1' or shut() == 'closed' then return answer('closed') end
-- While paused nobody is served: what is free belongs to the queue first.
if free_seats() - redis.call('ZCARD', QUEUE) > 0 then
  return settle('', redis.call('ZSCORE', QUEUE, member) or '')
end
return answer(full())
