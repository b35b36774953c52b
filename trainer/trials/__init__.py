"""Trials of a user's own run, before it is trusted with a month: the same curve under every strategy (`trainer parity`), and nothing lost
when it is killed (`trainer rehearse`). Each is made of real runs, by the front door and the agent, in folders of their own."""
