"""What each file promises, within one process and without a server of ours, and rules that hold over the whole tree."""
