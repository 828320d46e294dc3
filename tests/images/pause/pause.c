/* Holds a pod's namespaces, and reaps what its containers leave behind. */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static void reap(int signal) {
  (void)signal;
  while (waitpid(-1, NULL, WNOHANG) > 0) {
  }
}

static void quit(int signal) {
  (void)signal;
  _exit(0);
}

int main(void) {
  struct sigaction on_child = {.sa_handler = reap, .sa_flags = SA_NOCLDSTOP};
  struct sigaction on_end = {.sa_handler = quit};
  if (sigaction(SIGCHLD, &on_child, NULL) < 0 || sigaction(SIGINT, &on_end, NULL) < 0 ||
      sigaction(SIGTERM, &on_end, NULL) < 0) {
    return 1;
  }
  for (;;) {
    pause();
  }
}
