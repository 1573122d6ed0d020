"""The whole stack as a user has it: `forebay up`, the real model, real processes, and foreign clients."""
