-- Sends the bodies of a file in turn; prints what wrk measured as one line of JSON.
-- wrk -s chat.lua URL -- FILE
local bodies = {}
local at = 0

function init(args)
   for line in io.lines(args[1]) do bodies[#bodies + 1] = line end
   wrk.method = "POST"
   wrk.headers["content-type"] = "application/json"
end

function request()
   at = at % #bodies + 1
   return wrk.format(nil, nil, nil, bodies[at])
end

function done(summary, latency, requests)
   local errors = summary.errors
   io.write(string.format(
      '{"requests": %d, "seconds": %.6f, "p50_ms": %.4f, "p90_ms": %.4f, "p99_ms": %.4f, "failed": %d}\n',
      summary.requests, summary.duration / 1e6,
      latency:percentile(50) / 1e3, latency:percentile(90) / 1e3, latency:percentile(99) / 1e3,
      errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
