-- include: commerce/seats
-- Decides many claims of a benefit that needs no joining, in order of arrival. Nobody is told here: the rows are
-- written first, then announce_claims.lua counts and tells.
--
-- KEYS  as in seats.lua
-- ARGV  1 id · 2 digest of the command · 3 stamp of the holders the caller knows, '' for none
--       4… pairs: member, key
--       e.g. 'b7' 'benefit.claim:b7' '' 'm1' 'k1' 'm2' 'k2'
-- Returns {'ok', generation, quota, stamp or '' when not spent, [holder, …] when spent and the caller's stamp is another, [answer, …]}
--         answer: 'won <rank> <nth>' (fresh, or the same key again) · 'already <rank> <nth>' · 'sold_out' · 'paused' or 'paused <reason>' ·
--         'closed' · 'not_live' · 'not_started <ms left> 0' · 'key_reused'; a rank whose row is to be written is followed by ' ' and its key
-- All or none. Refusals are not remembered: a freed seat may be tried for with the same key.
assert((#ARGV - 3) % 2 == 0, 'claims come in pairs')
local gone = benefit_guard() if gone then return gone end
local word = shut()
local at = status()
if at == 'scheduled' or at == 'waiting' then word = 'not_live'
elseif at == 'ended' then word = 'closed'
elseif at == 'paused' and word == '' then word = 'paused' end
local starts_at = tonumber(redis.call('HGET', B, 'starts_at') or '')
if word == '' and starts_at and NOW < starts_at then word = string.format('not_started %.0f 0', starts_at - NOW) end
if word == 'paused' then
  local why = redis.call('HGET', META, 'incident') or terms.reason
  if why and why ~= '' then word = 'paused ' .. why end
end
local free, per_person = free_seats(), number('per_person')
local answers = {}

local function to_write(rank)
  local settling = redis.call('HGET', SETTLING, rank)
  return settling and ' ' .. string.match(settling, '^%d+|[^|]*|%d+|(.*)$') or ''
end

for i = 4, #ARGV, 2 do
  local member, key = ARGV[i], ARGV[i + 1]
  local seen = recall(member, key, ARGV[2])
  local answer
  if seen and seen[1] == 'ok' then
    answer = 'won ' .. seen[2] .. to_write(string.match(seen[2], '^%d+'))
  elseif seen then
    answer = 'key_reused'
  else
    local ranks = redis.call('HGET', CLAIMS, member)
    local nth = 1
    local last
    if ranks then
      for rank in string.gmatch(ranks, '%d+') do nth, last = nth + 1, rank end
    end
    if nth > per_person then
      answer = 'already ' .. last .. ' ' .. (nth - 1) .. to_write(last)
    elseif word ~= '' then
      answer = word
    elseif free <= 0 then
      answer = 'sold_out'
    else
      local spare = redis.call('ZPOPMIN', SPARE)
      local rank = spare[1] or tostring(redis.call('HINCRBY', B, 'ranked', 1))
      free = free - 1
      redis.call('HSET', CLAIMS, member, ranks and (ranks .. ',' .. rank) or rank)
      redis.call('HSET', SETTLING, rank, string.format('%.0f|%s|%d|%s', NOW, member, nth, key))
      remember(member, key, ARGV[2], rank .. ' ' .. nth)
      answer = 'won ' .. rank .. ' ' .. nth .. ' ' .. key
    end
  end
  answers[#answers + 1] = answer
end
show_counts()

local stamp = terms.generation .. ':' .. terms.version .. ':' .. redis.call('HGET', B, 'freed')
local holders = {}
if free <= 0 and stamp ~= ARGV[3] then holders = redis.call('HKEYS', CLAIMS) end
return {'ok', terms.generation, number('quota'), free <= 0 and stamp or '', holders, answers}
