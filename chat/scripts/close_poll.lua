-- Close a poll: from here on no ballot counts and everyone asked may see the tally. A repeat answers the same.
--
-- KEYS[8] poll      hash: open, choices (how many), max, closes_at, definition
-- KEYS[9] ballots   hash: person -> ballot
-- ARGV[1] id        of the poll
-- ARGV[2] parts     of state poll:<id> when closed
-- ARGV[3] bit       of the audience
-- ARGV[4] kept      seconds the ballots stay here: they are copied to PostgreSQL at once
-- Returns {'ok', '{"voters":n,"tally":[…]}'}, or {'ok', ''} when the show does not know the poll;
-- refused: unavailable.
-- All or none.
local gone = guard()
if gone then return gone end
local POLL, id, state = KEYS[8], ARGV[1], 'poll:' .. ARGV[1]
local poll = redis.call('HMGET', POLL, 'open', 'choices')
if not poll[1] then return {'ok', ''} end
local tally = {}
for choice = 0, tonumber(poll[2]) - 1 do tally[choice + 1] = string.format('%.0f', get_count(state, choice)) end
local body = '"voters":' .. string.format('%.0f', get_count(state, 'voters')) ..
  ',"tally":[' .. table.concat(tally, ',') .. ']}'
if poll[1] == '1' then
  redis.call('HSET', POLL, 'open', '0')
  if redis.call('HGET', META, 'poll') == id then redis.call('HDEL', META, 'poll') end
  put_state(state, ARGV[2])
  append(ARGV[3], '{"type":"poll.closed","poll":"' .. id .. '",' .. body, true)
  redis.call('EXPIRE', POLL, ARGV[4])
  redis.call('EXPIRE', KEYS[9], ARGV[4])
end
return {'ok', '{' .. body}
