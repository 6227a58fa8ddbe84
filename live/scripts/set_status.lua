-- Move a show to its next status and tell it; or, with from = to, bring its state and settings up to date.
-- The row in PostgreSQL is committed before. A repeat changes nothing.
--
-- KEYS  the spine (prelude)
-- ARGV[1] from, ARGV[2] to    scheduled waiting live paused ending ended
-- ARGV[3] parts               of state `show`
-- ARGV[4] event               JSON, '' when from = to
-- ARGV[5 …] META fields to set: name, value, name, value …
-- Returns {'ok', 1}, or {'ok', 0} when nothing was to change; refused: unavailable, wrong_status.
-- All or none.
local gone = guard()
if gone then return gone end
local from, to = ARGV[1], ARGV[2]
local MOVES = {
  scheduled = {waiting = true},
  waiting = {live = true},
  live = {paused = true, ending = true},
  paused = {live = true, ending = true},
  ending = {ended = true},
}
local current = status()
local moves = current ~= to
if moves and (current ~= from or not (MOVES[from] and MOVES[from][to])) then return refused('wrong_status') end

local changed = redis.call('HGET', STATES, 'show') ~= ARGV[3]
for index = 5, #ARGV - 1, 2 do
  if redis.call('HGET', META, ARGV[index]) ~= ARGV[index + 1] then
    redis.call('HSET', META, ARGV[index], ARGV[index + 1])
    changed = true
  end
end
if moves then redis.call('HSET', META, 'status', to) end
if moves or changed then put_state('show', ARGV[3]) end
if moves then append(0, ARGV[4], true) end
if moves and to == 'ended' then redis.call('EXPIRE', REPLIES, 86400) end
return {'ok', (moves or changed) and 1 or 0}
