-- include: commerce/seats
-- Takes a seat for a member who starts to pay: once per person and benefit, never renewed.
--
-- KEYS  as in seats.lua
-- ARGV  1 id · 2 member · 3 token of this call, for its undo
-- Returns {'ok', status, until ms or '', change number or ''}; status is held (taken now), holding (has one already),
--         settling, confirmed, lapsed (had one before), paused, closed, reserved_out or sold_out
-- All or none.
local gone = benefit_guard() if gone then return gone end
local member = ARGV[2]
sweep()
local function answer(word, until_ms, change)
  show_counts()
  return {'ok', word, until_ms and string.format('%.0f', until_ms) or '', change or ''}
end

if redis.call('HEXISTS', CLAIMS, member) == 1 then return answer('confirmed') end
if redis.call('HEXISTS', SETTLING, member) == 1 then return answer('settling') end
local until_ms = redis.call('ZSCORE', HELD, member)
if until_ms then return answer('holding', tonumber(until_ms)) end
if redis.call('SISMEMBER', HAD, member) == 1 then return answer('lapsed') end
local word = shut()
if word ~= '' then return answer(word) end
if free_seats() <= 0 then return answer(full()) end
return answer('held', hold(member, 'held', ARGV[3]))
