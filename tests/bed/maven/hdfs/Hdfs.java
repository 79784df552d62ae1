import java.io.File;
import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.fs.FileSystem;
import org.apache.hadoop.fs.Path;
import org.apache.hadoop.hdfs.MiniDFSCluster;

/**
 * An HDFS of one name node and one data node on loopback: {@code hdfs FOLDER [LOCAL REMOTE]}. Copies LOCAL to REMOTE if
 * given, prints the port of the name node's HTTP server, and ends with its standard input.
 */
public final class Hdfs {
  public static void main(String[] arguments) throws Exception {
    Configuration configuration = new Configuration();
    configuration.set("dfs.permissions.enabled", "false");
    MiniDFSCluster cluster =
        new MiniDFSCluster.Builder(configuration, new File(arguments[0])).numDataNodes(1).format(true).build();
    cluster.waitActive();
    if (arguments.length > 2) {
      FileSystem files = cluster.getFileSystem();
      files.copyFromLocalFile(new Path(new File(arguments[1]).toURI()), new Path(arguments[2]));
    }
    System.out.println(cluster.getNameNode().getHttpAddress().getPort());
    System.out.flush();
    while (System.in.read() >= 0) {}
    Runtime.getRuntime().halt(0);
  }
}
