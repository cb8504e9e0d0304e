"""From prompts and recorded outcomes to a router artifact: dataset -> classifier -> mapping -> evaluation."""
