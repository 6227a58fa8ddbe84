-- Put a poll to its audience; the row in PostgreSQL is committed before. A repeat changes nothing.
--
-- KEYS[8] poll          hash: open, choices (how many), max, closes_at, definition, generation
-- KEYS[9] ballots       hash: person -> ballot; those of an older generation are dropped, as is the poll
-- ARGV[1] id            of the poll
-- ARGV[2] definition    JSON; immutable
-- ARGV[3] choices       how many
-- ARGV[4] max           choices one ballot may carry
-- ARGV[5] closes_at     ms from when on no ballot counts, or ''
-- ARGV[6] parts         of state poll:<id>
-- ARGV[7] bit           of the audience
-- ARGV[8] event         poll.opened as JSON; '' when a reborn show takes the poll up again
-- Returns {'ok', 1}, or {'ok', 0} when the poll was here before; refused: unavailable, poll_open.
-- All or none.
local gone = guard()
if gone then return gone end
local POLL, id = KEYS[8], ARGV[1]
local generation = redis.call('HGET', META, 'generation')
if redis.call('HGET', POLL, 'generation') == generation then return {'ok', 0} end
redis.call('DEL', POLL, KEYS[9])
local open = redis.call('HGET', META, 'poll')
if open and open ~= '' then return refused('poll_open') end

local before = redis.call('HGET', META, 'poll_shown')
if before then drop_state('poll:' .. before) end
redis.call('HSET', POLL, 'open', '1', 'choices', ARGV[3], 'max', ARGV[4], 'closes_at', ARGV[5],
  'definition', ARGV[2], 'generation', generation)
redis.call('HSET', META, 'poll', id, 'poll_shown', id)
local state = 'poll:' .. id
set_count(state, 'voters', 0)
for choice = 0, tonumber(ARGV[3]) - 1 do set_count(state, choice, 0) end
put_state(state, ARGV[6])
if ARGV[8] ~= '' then append(ARGV[7], ARGV[8], true) end
return {'ok', 1}
