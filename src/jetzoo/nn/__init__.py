"""What networks share: inputs, layouts, kinematics, blocks, the Particle Transformer."""
